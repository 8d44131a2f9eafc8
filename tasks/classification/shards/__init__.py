"""Image classification as parquet shards, the form in which the Hugging Face Hub distributes data sets."""
