"""LPIPS (arXiv 1801.03924, v0.1): perceptual distance on AlexNet, VGG-16 or SqueezeNet features.

d(a, b) = sum over taps of mean over space of sum over channels of w * (n(a) - n(b))^2, with n the
features divided by their channel norm + 1e-10. Weights are always real: a missing file is an error.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vlarft.errors import CheckpointError, ConfigError, ShapeError
from vlarft.models.folder import load_strict, write_tensors

Net = Literal["alex", "vgg", "squeeze"]
NETS: tuple[Net, ...] = ("alex", "vgg", "squeeze")

_ASSETS = Path(__file__).parent.parent / "assets" / "lpips"
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPS = 1e-10
TORCHVISION_FILE = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}  # torchvision puts the first eight hexadecimal digits of the file's sha256 into its name
_KNOWN_SHA256 = {  # float16 copies with heads, see assets/lpips/PROVENANCE.md
    "alex": "cf0540e5229915111163ab63924945e5dc8cae0e5dd6ad40efa379fd434229db",
    "vgg": "ead07be23aa132b677fb7f05aef97c037cf64ac266eafe8fabf90b4c00c2aedf",
}


class _Fire(nn.Module):
    """SqueezeNet's module: 1x1 squeeze, then 1x1 and 3x3 expansions side by side."""

    def __init__(self, width: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


def _backbone(net: Net) -> tuple[nn.Sequential, tuple[int, ...], tuple[int, ...]]:
    """Layers under torchvision's indices, indices after which features are taken, widths."""
    relu = nn.ReLU()
    if net == "alex":
        layers: list[nn.Module] = [
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), relu, nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), relu, nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), relu, nn.Conv2d(384, 256, 3, padding=1), relu),
            *(nn.Conv2d(256, 256, 3, padding=1), relu),
        ]
        return nn.Sequential(*layers), (1, 4, 7, 9, 11), (64, 192, 384, 256, 256)
    if net == "vgg":
        layers, width = [], 3
        for out, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                layers += [nn.Conv2d(width, out, 3, padding=1), relu]
                width = out
            layers.append(nn.MaxPool2d(2, 2))
        return nn.Sequential(*layers[:-1]), (3, 8, 15, 22, 29), (64, 128, 256, 512, 512)
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    layers = [
        nn.Conv2d(3, 64, 3, stride=2),
        relu,
        pool,
        _Fire(64, 16, 64),
        _Fire(128, 16, 64),
        pool,
    ]
    layers += [
        _Fire(128, 32, 128),
        _Fire(256, 32, 128),
        pool,
        _Fire(256, 48, 192),
        _Fire(384, 48, 192),
    ]
    layers += [_Fire(384, 64, 256), _Fire(512, 64, 256)]
    return nn.Sequential(*layers), (1, 4, 7, 9, 10, 11, 12), (64, 128, 256, 384, 384, 512, 512)


class LPIPS(nn.Module):
    """Distance of images in [0, 1].

    `LPIPS.load` builds it with real weights, `LPIPS.random` with random ones. Built directly, it
    refuses images until `load_state_dict` has been called.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net) -> None:
        super().__init__()
        if net not in NETS:
            raise ConfigError(f"LPIPS net '{net}'; allowed: {', '.join(NETS)}")
        self.net = net
        self._has_weights = False
        self.features_net, self.taps, widths = _backbone(net)
        self.lins = nn.ParameterList([nn.Parameter(torch.empty(w)) for w in widths])
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def load(cls, net: Net = "vgg", file: str | Path | None = None) -> "LPIPS":
        """Load pre-trained weights.

        Args:
            net: backbone; the paper's reward uses "vgg", the bundled weights are "alex".
            file: safetensors with `features.*` and `lin*.weight`; by default the bundled file or
                the one that `vlarft weights lpips` stored.

        Raises:
            CheckpointError: no weights; the message says how to get them.
        """
        lpips = cls(net)
        path = Path(file) if file else weights_path(net)
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no LPIPS weights for '{net}'; get them with: "
                f"vlarft weights lpips --net {net} "
                "(add --file FILE without internet)"
            )
        try:
            tensors = load_file(path)
        except Exception as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
        load_strict(lpips, _own_names(tensors), str(path))
        lpips.requires_grad_(False)
        return lpips.eval()

    @classmethod
    def random(cls, net: Net, seed: int = 0) -> "LPIPS":
        """Random weights, heads positive: for timing and tests, where the distance means nothing.

        Args:
            net: backbone.
            seed: of the weights.
        """
        lpips, generator = cls(net), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in lpips.named_parameters():
                if name.startswith("lins"):
                    weight.uniform_(generator=generator)
                elif name.endswith("bias"):
                    weight.normal_(std=0.1, generator=generator)
                else:  # activations keep their size from layer to layer
                    weight.normal_(std=(2 / weight[0].numel()) ** 0.5, generator=generator)
        lpips._has_weights = True
        return lpips.requires_grad_(False).eval()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As `torch.nn.Module`; afterwards the network has weights."""
        result = super().load_state_dict(*args, **kwargs)
        self._has_weights = True
        return result

    def features(self, images: Tensor) -> list[Tensor]:
        """Images [B,3,H,W] in [0,1] -> unit-normalised features of every tap, float32 [B,C,h,w].

        Raises:
            CheckpointError: no weights were loaded.
            ShapeError: images are not [B,3,H,W].
        """
        if not self._has_weights:
            raise CheckpointError(
                f"LPIPS('{self.net}') has no weights; use LPIPS.load('{self.net}'), which reads "
                f"what `vlarft weights lpips --net {self.net}` stored"
            )
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(f"LPIPS images must be [B,3,H,W], got {list(images.shape)}")
        x = ((2 * images - 1 - self.shift) / self.scale).to(self.lins[0].dtype)
        out = []
        for i, layer in enumerate(self.features_net):
            x = layer(x)
            if i in self.taps:
                y = x.float()
                out.append(y / (y.square().sum(1, keepdim=True).sqrt() + _EPS))
        return out

    def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """Distance of two feature lists -> float32 [B]."""
        total = torch.zeros(a[0].shape[0], device=a[0].device)
        for x, y, weight in zip(a, b, self.lins, strict=True):
            total = total + torch.einsum("bchw,c->bhw", (x - y).square(), weight.float()).mean(
                (1, 2)
            )
        return total

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images [B,3,H,W] in [0,1] -> distance float32 [B]."""
        return self.distance(self.features(a), self.features(b))


def weights_path(net: Net) -> Path:
    """Where `LPIPS.load` looks: the bundled file, else the user's cache (VLARFT_CACHE)."""
    name = f"lpips_{net}_fp16.safetensors"
    if (_ASSETS / name).is_file():
        return _ASSETS / name
    root = os.environ.get("VLARFT_CACHE", str(Path.home() / ".cache" / "vlarft"))
    return Path(root) / name


def install_weights(net: Net, file: Path | None = None, destination: Path | None = None) -> Path:
    """Fetch torchvision's convolutions (or read `file`), join LPIPS' heads, check, store.

    Args:
        net: backbone.
        file: torchvision's `.pth`, or a safetensors file as this function writes; None downloads.
        destination: where to store; default is where `LPIPS.load` looks.

    Raises:
        CheckpointError: the download failed or the file's hash is not a known one.
    """
    destination = destination or weights_path(net)
    name = TORCHVISION_FILE[net]
    if file is None:
        file = destination.with_name(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        url = f"https://download.pytorch.org/models/{name}"
        try:
            torch.hub.download_url_to_file(url, str(file))
        except OSError as error:
            raise CheckpointError(
                f"{url}: download failed ({error}); fetch it elsewhere and pass --file {name}"
            ) from error
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; expected {name} or an LPIPS safetensors file")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    expected = name.rsplit("-", 1)[1].removesuffix(".pth")
    if digest == _KNOWN_SHA256.get(net):
        tensors = load_file(file)
    elif digest.startswith(expected):
        state = torch.load(file, weights_only=True, map_location="cpu")
        tensors = {k: v for k, v in state.items() if k.startswith("features.")}
        heads = load_file(_ASSETS / "lpips_heads.safetensors")
        tensors |= {
            k.removeprefix(f"{net}."): v for k, v in heads.items() if k.startswith(f"{net}.")
        }
    else:
        raise CheckpointError(
            f"{file}: sha256 {digest[:16]}... is not that of {name} ({expected}...) nor of a known "
            f"LPIPS file; expected unmodified '{net}' weights"
        )
    load_strict(LPIPS(net), _own_names(tensors), str(file))
    write_tensors(destination, tensors, torch.float16)
    return destination


def _own_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in tensors.items():
        if key.startswith("features."):
            renamed["features_net." + key.removeprefix("features.")] = value.float()
        elif key.startswith("lin") and key.endswith(".weight"):
            renamed["lins." + key[3:-7]] = value.float().flatten()
    return renamed
