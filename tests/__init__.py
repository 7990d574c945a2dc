"""The tests: unit, contract, cli and typing need only Python; interop needs the real peers."""
