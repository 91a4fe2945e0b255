"""What the engine is made of, besides pure state and the kernel."""
