"""LIBERO's simulator in processes of its own; starts, and the scripted expert."""
