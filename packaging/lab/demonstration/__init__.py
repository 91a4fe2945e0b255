"""The demonstration: what a person sees (``screen``), where it happens (``stage``), what is shown (``steps``)."""
