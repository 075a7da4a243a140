"""What a step minimises: flow matching on positives, and preference against the model's own negatives."""
