"""Search of quantizers' scales on a grid, by the error of an operation's or a whole block's output."""
