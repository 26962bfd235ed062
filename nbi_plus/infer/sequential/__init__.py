"""Sequential fits: one object, from few simulations."""
