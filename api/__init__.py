"""How the world reaches Plumbline: command line and HTTP."""
