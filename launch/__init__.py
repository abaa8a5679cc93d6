"""The vidsim command, recipes and launch files; nothing imports it."""
