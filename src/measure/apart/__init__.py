"""What another Python runs as a script: alone in its folder, which Python puts first where modules are looked for."""
