"""Forward models shipped for use; nothing inside the package imports them."""
