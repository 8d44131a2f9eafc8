"""The contract of methods, as checks that say what to do where one fails; and of contributed records."""
