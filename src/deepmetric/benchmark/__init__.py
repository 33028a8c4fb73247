"""Systems compared under one protocol: class-disjoint cross-validation, several seeds, intervals; and their tuning."""
