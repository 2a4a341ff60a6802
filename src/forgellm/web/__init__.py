"""The web server: REST, Socket.IO, and the pages."""
