"""The commands of `lamp-rig`, a file each."""
