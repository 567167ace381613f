"""Run: the chapters are executed, and what they gave is kept."""
