"""How a run lives: processes, loop, optimizer, schedule, checkpoints, reports. Knows nothing of videos."""
