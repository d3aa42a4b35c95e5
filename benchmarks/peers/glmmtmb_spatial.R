# A Matern process of smoothness 3/2 by glmmTMB, whose covariance is dense: data, repeats, this folder.
arguments <- commandArgs(trailingOnly = TRUE)
source(file.path(arguments[3], "timing.R"))
suppressPackageStartupMessages(library(glmmTMB))
d <- read.csv(arguments[1])
d$place <- numFactor(d$s1, d$s2)
d$all <- factor(rep(1, nrow(d)))
bench(function() glmmTMB(y ~ x + mat(place + 0 | all), d,
                         start = list(theta = c(0, -2, log(1.5))), map = list(theta = factor(c(1, 2, NA)))),
      paste("glmmTMB", packageVersion("glmmTMB")))
