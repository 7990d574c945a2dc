"""Fuzzing: whatever reads what strangers wrote is given what nobody would write. See CONTRIBUTING.md, "Fuzzing"."""
