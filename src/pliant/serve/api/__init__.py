"""The HTTP interface: bodies in, objects and event streams out."""
