"""What is trained: encoder, featurizer, flow, and the one training loop."""
