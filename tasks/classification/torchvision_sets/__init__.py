"""Image classification as torchvision's data sets lie on disk, by their names."""
