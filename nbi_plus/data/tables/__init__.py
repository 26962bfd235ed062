"""Tables: what any kind of table of measurements means, and how files hold it."""
