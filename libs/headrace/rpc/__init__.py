"""gRPC servers and channels with the same deadlines, errors, limits and traces on both sides."""
