"""Speed: what each stage costs, how near that is to what the machine can do, and how it compares with another way in one run."""
