import h5py
import numpy as np


def write_recordings(path, splits=("train", "train", "val", "val"), size=32, steps=12, seed=0):
    """Short episodes of noise in the layout that `vlarft data render` writes.

    Args:
        path: file to write.
        splits: one episode each.
        size: edge of the frames in px.
        steps: actions of an episode, or one number an episode.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    lengths = [steps] * len(splits) if isinstance(steps, int) else steps
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(
            task="pick_up_the_milk", language="pick up the milk", observation="before action"
        )
        data.attrs.update(suite="libero_object", task_id=0, macros_image_convention="opengl")
        for n, (split, count) in enumerate(zip(splits, lengths, strict=True)):
            episode = data.create_group(f"demo_{n}")
            episode.attrs.update(split=split, kind="moved", init_index=n, success=True, episode=n)
            shape = (count + 1, size, size, 3)
            episode["obs/agentview_rgb"] = rng.integers(0, 255, shape, dtype=np.uint8)
            for key, width in (("ee_pos", 3), ("ee_ori", 3), ("gripper_states", 2)):
                values = rng.normal(size=(count + 1, width)).astype(np.float32)
                episode[f"obs/{key}"] = values
            episode["actions"] = rng.uniform(-0.9, 0.9, (count, 7)).astype(np.float32)
    return path
