"""YOLO networks of the YOLOv4 family (Bochkovskiy et al. 2020) in darknet's own cfg and weight formats."""
