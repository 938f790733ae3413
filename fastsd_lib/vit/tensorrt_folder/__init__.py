"""What a TensorRT export takes along: the program that builds the engine where the GPU is."""
