"""The demo: the whole main job on a small model and text that come with the package."""
