"""Surveys: many objects in, one row each out, in a stream that can be interrupted."""

from nbi_plus.survey.frames import FrameFunction, frame_function
from nbi_plus.survey.parts import SurveyError
from nbi_plus.survey.summary import SurveySummary

__all__ = ["FrameFunction", "SurveyError", "SurveySummary", "frame_function"]
