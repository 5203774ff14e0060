"""Networks with one bit: signs with surrogate gradients, binary convolutions, and the published binarizers."""
