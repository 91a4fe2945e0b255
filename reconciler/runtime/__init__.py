"""What moves while the daemon runs, and what the engine needs besides pure state and the kernel."""
