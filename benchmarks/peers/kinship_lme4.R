# K through a square root in lme4's design of the effects, as lme4qtl does it; K and y are text files in the folder.
arguments <- commandArgs(trailingOnly = TRUE)
folder <- arguments[1]
source(file.path(arguments[3], "timing.R"))
suppressPackageStartupMessages(library(lme4))
k <- as.matrix(read.csv(file.path(folder, "k.csv"), header = FALSE))
d <- data.frame(y = scan(file.path(folder, "y.csv"), quiet = TRUE), id = factor(seq_len(nrow(k))))
loose <- lmerControl(check.nobs.vs.nlev = "ignore", check.nobs.vs.nRE = "ignore")
variances <- NULL

fit <- function() {
  parts <- lFormula(y ~ 1 + (1 | id), d, REML = TRUE, control = loose)
  e <- eigen(k, symmetric = TRUE)
  root <- e$vectors %*% diag(sqrt(pmax(e$values, 0)))
  parts$reTrms$Zt <- Matrix(crossprod(root, as.matrix(parts$reTrms$Zt)), sparse = TRUE)
  devfun <- do.call(mkLmerDevfun, parts)
  model <- mkMerMod(environment(devfun), optimizeLmer(devfun), parts$reTrms, fr = parts$fr)
  variances <<- as.data.frame(VarCorr(model))$vcov
  model
}

first <- seconds(fit)
times <- vapply(seq_len(repeats), function(i) seconds(fit)$time, 0)
if (length(times) == 0) times <- first$time
cat("RESULT ", toJSON(list(first = first$time, times = as.list(times), effects = variances[1], residual = variances[2],
                           peak_mb = peak_mb(), version = paste("lme4", packageVersion("lme4"))),
                      auto_unbox = TRUE, digits = NA), "\n", sep = "")
