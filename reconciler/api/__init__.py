"""The daemon's HTTP interface on its unix socket: server and client."""
