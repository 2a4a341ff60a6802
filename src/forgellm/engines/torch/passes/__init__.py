"""The passes between a decoder block's matrix products: in torch operations, and each as one loop in C
where the machine has a C compiler."""
