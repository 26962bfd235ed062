"""What we believe: prior, observations, noise, simulator and their product, the target."""
