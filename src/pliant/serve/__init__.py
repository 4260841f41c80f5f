"""An artifact as a server: scheduling, an engine room, HTTP."""
