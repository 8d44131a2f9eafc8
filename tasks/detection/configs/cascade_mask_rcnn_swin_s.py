# Cascade Mask R-CNN with Swin-S.
_base_ = "./cascade_mask_rcnn_swin_t.py"

model = dict(backbone=dict(depths=[2, 2, 18, 2], drop_path_rate=0.2))
