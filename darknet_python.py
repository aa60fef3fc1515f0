"""Object detection with YOLO networks under the names of darknet's Python wrapper.

from darknet_python import performDetect
found = performDetect(imagePath="dog.jpg", configPath="yolov4.cfg", weightPath="yolov4.weights", metaPath="coco.data")
"""

from models.darknet.python_api import performBatchDetect, performDetect

__all__ = ["performBatchDetect", "performDetect"]
