"""What people look at: predictions drawn on images, contact sheets, curves."""
