"""Posteriors: answers, what they are worth and how they are handed out."""
