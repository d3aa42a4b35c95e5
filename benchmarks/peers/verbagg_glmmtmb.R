arguments <- commandArgs(trailingOnly = TRUE)
source(file.path(arguments[3], "timing.R"))
suppressPackageStartupMessages(library(glmmTMB))
d <- read.csv(arguments[1], stringsAsFactors = TRUE)
d$id <- factor(d$id)
bench(function() glmmTMB(y ~ Anger + Gender + btype + situ + mode + (1 | id) + (1 | item), d, family = binomial),
      paste("glmmTMB", packageVersion("glmmTMB")))
