"""The bundled recipes, one TOML file each."""
