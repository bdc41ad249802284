"""What comes after training: exact rewrites, exports with a parity gate, exported files."""
