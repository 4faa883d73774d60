"""What `applications.lifelong` is made of: streams, memories, robust training and selection."""
