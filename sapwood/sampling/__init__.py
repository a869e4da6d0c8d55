"""From logits to tokens: ordered steps, of which a batch runs only those that some row needs."""
