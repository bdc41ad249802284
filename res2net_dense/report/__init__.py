"""What a person looks at: predictions drawn on images."""
