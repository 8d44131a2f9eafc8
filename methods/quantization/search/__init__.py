"""Search of quantizers' scales by the error of outputs."""
