"""The web server: REST now, Socket.IO and the page later."""
