"""What users have, as calibration data: whatever can be iterated, files of arrays, pictures, text, sound."""
