# Bits shared out among sites.
from .allocation.knapsack import Item as Item
from .allocation.knapsack import best_widths as best_widths
from .allocation.mixed import mixed_table as mixed_table
from .allocation.mixed import shared_out as shared_out
from .allocation.mixed import with_widths as with_widths
from .allocation.reconstruction_error import reconstruction_errors as reconstruction_errors
from .allocation.sensitivity import grids_at as grids_at
from .allocation.sensitivity import sensitivities as sensitivities
from .allocation.sites import mean_bits as mean_bits
from .allocation.sites import site_sizes as site_sizes
from .allocation.spikes import spike_ratios as spike_ratios

# Bit widths and tables; without torch.
from .bits import FLOAT as FLOAT
from .bits import BitTable as BitTable
from .bits import BitWidth as BitWidth
from .bits import Protocol as Protocol
from .bits import TensorSpec as TensorSpec
from .bits import equal_table as equal_table
from .bits import of_one as of_one
from .calibration.codebook_search import codebook_rule as codebook_rule

# Calibration: images, passes over them, range rules, recordings.
from .calibration.data import Calibration as Calibration
from .calibration.data import CalibrationProgress as CalibrationProgress
from .calibration.gradients import fisher_loss as fisher_loss
from .calibration.gradients import self_divergence_loss as self_divergence_loss
from .calibration.group_rules import group_rule as group_rule
from .calibration.least_squares import least_squares_rule as least_squares_rule
from .calibration.level_search import level_rule as level_rule
from .calibration.memory import range_images as range_images
from .calibration.offset_search import offset_log_rule as offset_log_rule
from .calibration.passes import RangeRule as RangeRule
from .calibration.passes import calibrate_activations as calibrate_activations
from .calibration.passes import calibrate_sites as calibrate_sites
from .calibration.passes import calibrate_weights as calibrate_weights
from .calibration.piecewise_search import piecewise_rule as piecewise_rule
from .calibration.range_rules import best_percentile_rule as best_percentile_rule
from .calibration.range_rules import histogram_shrink_rule as histogram_shrink_rule
from .calibration.range_rules import minmax_rule as minmax_rule
from .calibration.range_rules import percentile_rule as percentile_rule
from .calibration.range_rules import power_of_two_factor_rule as power_of_two_factor_rule
from .calibration.range_rules import shrink_rule as shrink_rule
from .calibration.range_search import shifted_log_rule as shifted_log_rule
from .calibration.range_search import two_ended_rule as two_ended_rule
from .calibration.recording import Recording as Recording
from .calibration.recording import record_operations as record_operations
from .calibration.segment_recording import SegmentRecording as SegmentRecording
from .calibration.segment_recording import record_segments as record_segments
from .calibration.sources import InputForm as InputForm
from .calibration.sources import SynthesisSettings as SynthesisSettings
from .calibration.stable_rules import StableRule as StableRule
from .calibration.stable_rules import chunked_percentile_rule as chunked_percentile_rule
from .calibration.stable_rules import percentile_grid as percentile_grid
from .calibration.synthesis import synthesise as synthesise

# A whole calibration in closed form.
from .closed_form import ClosedForm as ClosedForm
from .closed_form import calibrate_closed_form as calibrate_closed_form
from .closed_form import solve as solve
from .closed_form import transform as transform

# Corrections of blocks by regression of their error.
from .correction.blocks import correct_blocks as correct_blocks
from .correction.blocks import fold_corrections as fold_corrections
from .correction.layers import FoldedCorrection as FoldedCorrection
from .correction.layers import require_halves as require_halves

# Weights that make up for errors in closed form.
from .error_compensation.columnwise import round_columnwise as round_columnwise
from .error_compensation.descent import descend as descend
from .error_compensation.descent import scale_factors as scale_factors
from .error_compensation.layer_repair import RidgeRepair as RidgeRepair
from .error_compensation.layer_repair import repair_layers as repair_layers
from .error_compensation.output_adaptive import OutputAdaptive as OutputAdaptive
from .error_compensation.output_adaptive import output_adaptive_hessian as output_adaptive_hessian
from .error_compensation.residual_aware import ResidualAware as ResidualAware
from .error_compensation.residual_aware import require_folds as require_folds
from .error_compensation.residual_aware import round_with_residuals as round_with_residuals
from .error_compensation.resolve import Resolve as Resolve
from .error_compensation.resolve import Strength as Strength
from .error_compensation.resolve import resolve_layers as resolve_layers
from .error_compensation.row_moments import keep_row_moments as keep_row_moments
from .error_compensation.two_streams import LayerStreams as LayerStreams
from .error_compensation.two_streams import TokenWeights as TokenWeights
from .error_compensation.two_streams import visit_streams as visit_streams
from .error_compensation.visiting import visit_layers as visit_layers

# Diagnostics of tensors and blocks.
from .inspection.propagation import SegmentGain as SegmentGain
from .inspection.propagation import propagation_gains as propagation_gains
from .inspection.sites import SiteFigures as SiteFigures
from .inspection.sites import inspect_sites as inspect_sites
from .model.families.base import Family as Family
from .model.families.registry import FAMILIES as FAMILIES
from .model.families.registry import find_family as find_family
from .model.families.registry import register_family as register_family
from .model.families.registry import wrap_model as wrap_model

# The model with quantizers, and scales that move inside it.
from .model.folding import fold_into_reader as fold_into_reader
from .model.folding import fold_into_values as fold_into_values
from .model.layers import QuantConv2d as QuantConv2d
from .model.layers import QuantLinear as QuantLinear
from .model.layers import QuantMatMul as QuantMatMul
from .model.layers import QuantOperation as QuantOperation
from .model.layers import WeightedOperation as WeightedOperation
from .model.quantized_model import QuantizedModel as QuantizedModel
from .model.structure import NormLink as NormLink
from .model.structure import Segment as Segment
from .model.structure import Site as Site
from .model.structure import ValueLink as ValueLink
from .model.structure import sites_of as sites_of

# Quantizer forms.
from .quantizers.base import Quantizer as Quantizer
from .quantizers.log_grid import LogGridQuantizer as LogGridQuantizer
from .quantizers.registry import FORMS as FORMS
from .quantizers.registry import register_form as register_form
from .reconstruction.activation_trainables import LogScales as LogScales
from .reconstruction.activation_trainables import LogSteps as LogSteps
from .reconstruction.activation_trainables import Ranges as Ranges
from .reconstruction.activation_trainables import Steps as Steps

# Reconstruction: units trained on their output, one after the other.
from .reconstruction.affine import Biases as Biases
from .reconstruction.affine import CodedScales as CodedScales
from .reconstruction.affine import FloatWeights as FloatWeights
from .reconstruction.affine import NormAffine as NormAffine
from .reconstruction.choices import UnitGranularity as UnitGranularity
from .reconstruction.choices import Weighting as Weighting
from .reconstruction.curvature import FisherApproximation as FisherApproximation
from .reconstruction.curvature import LeastSquaresHessian as LeastSquaresHessian
from .reconstruction.curvature import PerturbationHessian as PerturbationHessian
from .reconstruction.engine import reconstruct as reconstruct
from .reconstruction.joint import ChannelFactors as ChannelFactors
from .reconstruction.joint import WeightScales as WeightScales
from .reconstruction.joint import WeightShifts as WeightShifts
from .reconstruction.losses import BlockError as BlockError
from .reconstruction.losses import FeatureError as FeatureError
from .reconstruction.losses import FisherError as FisherError
from .reconstruction.losses import Homologous as Homologous
from .reconstruction.losses import LocalDivergence as LocalDivergence
from .reconstruction.losses import Loss as Loss
from .reconstruction.losses import MeanError as MeanError
from .reconstruction.losses import NegativeLogCosine as NegativeLogCosine
from .reconstruction.losses import OutputDivergence as OutputDivergence
from .reconstruction.losses import PredictionDivergence as PredictionDivergence
from .reconstruction.progressive import check_progression as check_progression
from .reconstruction.progressive import reconstruct_progressively as reconstruct_progressively
from .reconstruction.recipe import Recipe as Recipe
from .reconstruction.smoothing import Smoothing as Smoothing
from .reconstruction.start import calibrate_start as calibrate_start
from .reconstruction.start import shift_rule as shift_rule
from .reconstruction.trainables import Clipping as Clipping
from .reconstruction.trainables import Roundings as Roundings
from .reconstruction.trainables import Trainable as Trainable
from .reconstruction.trainables import Weights as Weights

# A calibration whose scales move from LayerNorm outputs into weights.
from .reparameterization import PERCENTILES as PERCENTILES
from .reparameterization import calibrate_reparameterized as calibrate_reparameterized
from .reparameterization import fold_norm_outputs as fold_norm_outputs
from .reparameterization import join_channels as join_channels
from .reparameterization import split_channels as split_channels

# Search of scales by the error of outputs.
from .search.activation_grids import calibrate_grids as calibrate_grids
from .search.attention_maps import LogGrid as LogGrid
from .search.attention_maps import search_log_map as search_log_map
from .search.attention_maps import search_maps as search_maps
from .search.blockwise import BlockwiseSearch as BlockwiseSearch
from .search.candidates import Grid as Grid
from .search.candidates import SearchMode as SearchMode
from .search.operation import search_model as search_model
from .search.operation import search_operation as search_operation
from .search.output_error import search_progressively as search_progressively
from .search.output_factors import fold_output_factors as fold_output_factors
from .search.powers_of_two import calibrate_powers_of_two as calibrate_powers_of_two
from .search.progressive import Progression as Progression
from .search.progressive import progressive_rule as progressive_rule
from .search.scores import CosineMetric as CosineMetric
from .search.scores import EliminatedFisherMetric as EliminatedFisherMetric
from .search.scores import FisherMetric as FisherMetric
from .search.scores import SquaredErrorMetric as SquaredErrorMetric
from .search.tangent_maps import search_tangent_maps as search_tangent_maps

# Quantized models on disk.
from .storage import load_quantized as load_quantized
from .storage import save_quantized as save_quantized

# Transforms that keep the full-precision function, in front of any calibration.
from .transforms.apply import apply_transforms as apply_transforms
from .transforms.apply import transform_problem as transform_problem
from .transforms.centring import centre_keys as centre_keys
from .transforms.heads import equalise_heads as equalise_heads
from .transforms.heads import rotate_heads as rotate_heads
from .transforms.names import TRANSFORMS as TRANSFORMS
from .transforms.norms import shift_norms as shift_norms
from .transforms.norms import smooth_norm_outputs as smooth_norm_outputs
from .transforms.relu import ReluFit as ReluFit
from .transforms.relu import refit_relu as refit_relu
from .transforms.relu import relu_problem as relu_problem
from .transforms.residual import rotate_residual as rotate_residual
