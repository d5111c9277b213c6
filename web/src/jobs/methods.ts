/** The methods in a line each; one that the API has and this table lacks, or the other way round, is an error of types. */
import type { Method } from "$lib/choices";

export const ABOUT: Record<Method, string> = {
  fim: "each example's weight gradient, squared (the paper's)",
  coherent: "inner products of unlike examples' gradients",
  spectral: "singular values of the mean gradient",
  "spectral-denoised": "the same, above the edge of their noise",
  "fim-over-null": "fim, over itself under labels of other examples",
  gora: "weights times the mean gradient",
  vila: "fim, over itself on rows to retain (needs retain: use the API)",
  kappa: "condition number of each weight; no data",
  eva: "variance along the principal components of inputs",
  "fisher-layers": "Fisher information, whole layers chosen",
  "fisher-layers-frobenius": "the same by Frobenius norms",
  "cka-layers": "likeness of a layer's input and output",
  "cka-layers-biased": "the same, as published",
  "effective-rank": "entropy of the whitened gradient's spectrum",
  uniform: "the same rank everywhere: the strong default",
  random: "a control: ranks drawn by chance",
};
