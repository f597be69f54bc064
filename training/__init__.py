"""Training of the codec, the embedder and the joint model, and the stream that feeds it."""
